"""What several packages need, and none owns."""
