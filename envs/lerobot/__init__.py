"""Datasets in the formats of LeRobot: read into demonstrations, and written from them."""
