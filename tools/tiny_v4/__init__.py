"""Training of the shipped model: `python tools/train_tiny_v4.py --help`. Nothing else in the project needs torch."""
