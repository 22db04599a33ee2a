"""The rules behind the normal form of a question: characters, words, courtesies, frames."""
