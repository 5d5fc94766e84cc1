"""Frozen pretrained models as embed -> blocks -> readout; the only package that imports timm."""
