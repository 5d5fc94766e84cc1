"""Tasks as images and labels: where they come from, how they are decoded, cached, augmented and batched."""
