"""The fine-tuned model: backbone, LoRA, new layer and classifier, and its folder."""
