"""A model behind OpenAI's chat API: HTTP requests become requests to an engine, its answers HTTP responses.

The event loop decodes, tokenizes and computes nothing: bodies are read in a few threads, the model runs in the
engine's. `build_app` of `visualchat.serve.app` makes the server around a backend (`visualchat.serve.backend`), `serve`
of `visualchat.serve.running` runs it.
"""
