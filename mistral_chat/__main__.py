"""``python -m mistral_chat`` is the ``mistral-chat`` command."""

from mistral_chat.cli import main

if __name__ == "__main__":
    main()
