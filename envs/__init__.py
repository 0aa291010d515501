"""Gymnasium environments of gjwm."""
