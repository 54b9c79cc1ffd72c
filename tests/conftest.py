import os

# No test needs a model hub, and one that is out of reach costs half a minute of retries.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
