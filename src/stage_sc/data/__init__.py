"""From AnnData to what the model takes: slides in canonical order, and batches of them."""
