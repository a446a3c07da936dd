"""Judges: a model behind OpenAI's chat API scores answers, or says which of two is better."""
