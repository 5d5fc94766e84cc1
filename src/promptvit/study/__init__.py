"""Prompts or full fine-tuning (Han et al., ICLR 2024, arXiv 2401.12902): its evidence, its study, and advice."""
