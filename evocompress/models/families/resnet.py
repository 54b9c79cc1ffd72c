"""ResNet for image classification, of basic and of bottleneck layers."""

from evocompress.models.families.convolutional import Convolutional


class ResNet(Convolutional):
    """Stages of layers ``activation(shortcut(x) + layer(x))``, with batch norms."""

    model_type = "resnet"
    layers_path = "resnet.encoder.stages"
    block = r"resnet\.encoder\.stages\.\d+\.layers\.\d+"
    branch = "layer"
    shortcut = "shortcut"
    activation = "activation"
