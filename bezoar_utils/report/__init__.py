"""What a reader sees: tables, figures, cards, pages, runs side by side, the committed reference."""
