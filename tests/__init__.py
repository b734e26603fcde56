"""Tests never ask the Hub; said before anything that could is imported."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
