"""Replicas of the engine by Ray Serve, on one machine or several, behind the same app."""
