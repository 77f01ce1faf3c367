"""What a frozen or fine-tuned encoder is worth on labelled images."""
