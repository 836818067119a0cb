"""Turns a plain book into chats in the voice of one of its characters, for `train.lm`."""
