"""Serving a trained chatbot and a trained classifier: an OpenAI-compatible API and a page."""
