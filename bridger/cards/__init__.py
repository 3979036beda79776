"""What a model card says of an adapter: its metadata, its text, its picture."""
