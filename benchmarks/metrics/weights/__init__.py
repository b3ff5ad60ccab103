"""Shipped weights of metrics: fp16 safetensors, a JSON card beside each."""
