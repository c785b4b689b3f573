"""milora: fine-tuning on singular vectors (MiLoRA and its relatives), inside Hugging Face PEFT."""

__version__ = "0.1.0"
