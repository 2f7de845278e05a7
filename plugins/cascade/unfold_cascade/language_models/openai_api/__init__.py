"""OpenAI's protocol: requests and answers of clients and endpoints."""
