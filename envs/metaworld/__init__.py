"""MetaWorld v3."""
