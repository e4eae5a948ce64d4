"""Gymnasium-Robotics' Fetch tasks."""
