"""Tasks: what goes into a network, what it should answer, and how the answer becomes a picture."""
