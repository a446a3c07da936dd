"""Answers to many conversations at a time, written as they are given: what batch generation and evaluation share."""
