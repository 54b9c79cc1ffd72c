"""A tiny LLaVA with its processor, as engines take it: they cut text and images themselves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import AutoProcessor, CLIPImageProcessor, LlavaConfig, LlavaProcessor
from transformers import LlavaForConditionalGeneration as Llava

from evocompress.models.families.derivation.shrink import random_model
from evocompress.models.loading import LoadedModel, load
from evocompress.testing.tiny import tiny_tokenizer

SIDE, PATCH = 28, 14
"""Pixels of an image, which is four patches, and of a patch, along a side."""

IMAGE = "<image>"

TEXT = f"ab {IMAGE} hello"
"""A prompt with an image."""


def seeing_model(folder: Path) -> LoadedModel:
    """A random LLaVA of four layers in float32, saved in a folder with its processor and loaded.

    Its language model is a Llama with 4 heads of 64, 2 key-value heads and 512 channels.
    """
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE]})
    square = {"height": SIDE, "width": SIDE}
    LlavaProcessor(
        image_processor=CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=square),
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        image_token=IMAGE,
        num_additional_image_tokens=1,
    ).save_pretrained(folder)
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    vision |= {"num_attention_heads": 2, "image_size": SIDE, "patch_size": PATCH}
    text = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "head_dim": 64}
    text |= {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 320}
    text |= {"bos_token_id": 0, "eos_token_id": 0, "max_position_embeddings": 512}
    config = LlavaConfig(
        vision_config={"model_type": "clip_vision_model", **vision},
        text_config={"model_type": "llama", **text},
        image_token_index=tokenizer.get_vocab()[IMAGE],
        vision_feature_layer=-1,
    )
    random_model(Llava, config).float().save_pretrained(folder)
    return load(str(folder), device="cpu")


def random_image(path: Path) -> Path:
    """A file with an image of random pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@torch.no_grad()
def tokens_after_image(loaded: LoadedModel, image: Path, new_tokens: int) -> list[int]:
    """The greedy continuation of `TEXT` with an image, by transformers without a cache."""
    processor = AutoProcessor.from_pretrained(loaded.folder)
    inputs = processor(images=Image.open(image), text=TEXT, return_tensors="pt")
    ids = inputs["input_ids"]
    length = ids.shape[1]
    for _ in range(new_tokens):
        seen = loaded.model(input_ids=ids, pixel_values=inputs["pixel_values"], use_cache=False)
        ids = torch.cat([ids, seen.logits[:, -1].argmax(-1, keepdim=True)], dim=1)
    return [int(token) for token in ids[0, length:]]
