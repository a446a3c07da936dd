"""A page to chat on, served by the same process as the API, which it uses like any other client.

`page.py` serves its files and what it asks beside OpenAI's API; `files/` is the page itself, plain HTML, CSS and
JavaScript that load nothing from elsewhere. What is said in a conversation is kept in the browser alone.
"""
