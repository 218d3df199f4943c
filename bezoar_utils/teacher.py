"""The teacher: a local model that is asked in its own wrapper and truly generates."""

from .models import count_tokens, generate, load_model, load_tokenizer


class Teacher:
    """Answers prompts for one stage; what it writes is counted as the stage's tokens."""

    def __init__(self, stage, settings: dict, seed: int):
        path = stage.input(settings["model"])
        self.stage, self.settings, self.seed = stage, settings, seed
        self.model, self.tokenizer = load_model(path), load_tokenizer(path)
        self.asked = 0

    def generate(self, prompts: list[str], what: str) -> list[str]:
        """One stripped completion a prompt, in order. Each call samples from a seed of its own."""
        s = self.settings
        self.asked += 1
        texts = generate(
            self.model,
            self.tokenizer,
            [s["wrapper"].format(prompt=p) for p in prompts],
            max_new_tokens=s["max_new_tokens"],
            seed=self.seed + self.asked,
            temperature=s["temperature"],
            top_p=s["top_p"],
            batch_size=s["batch_size"],
            progress=self.stage.reporter(what),
        )
        self.stage.spend(tokens=count_tokens(self.tokenizer, texts), calls=len(prompts))
        return [text.strip() for text in texts]
