"""Text of -sample beside that of transformers, which reads the exported weights in float32: the likeliest token each time."""
import unittest

import fixture
import sentencepiece
import torch
import transformers

transformers.utils.logging.disable_progress_bar()

TOKENS = 200
SHAPE = "-layers 2 -width 256 -heads 4 -kv_heads 2 -ffn 512 -seq_len 256"
# Two float32 programs may choose differently between logits that are nearer than this.
NEAR = 1e-4


@torch.no_grad()
def greedy_ids(folder, prompt, vocabulary):
    """Prompt and what follows, up to TOKENS tokens, the first near choice or the end of the text."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids, known, last = list(prompt), None, torch.tensor([prompt])
    for _ in range(TOKENS):
        output = model(last, past_key_values=known, use_cache=True)
        known = output.past_key_values
        (first, second), (best, _) = output.logits[0, -1, :vocabulary].topk(2)
        if first - second < NEAR or best == model.config.eos_token_id:
            break
        ids.append(int(best))
        last = torch.tensor([[int(best)]])
    return ids


class GenerationTest(unittest.TestCase):
    def test_greedy_text_is_that_of_transformers(self):
        processor = sentencepiece.SentencePieceProcessor(model_file=fixture.tokenizer())
        text = "The weights of a model"
        prompt = [processor.bos_id(), *processor.encode(text)]
        compared = 0
        for bits, group in ((1, 0), (1.58, 32), (2, 0), (3, 0), (4, 0), (4, 32), (6, 0), (8, 128), (16, 0)):
            run = fixture.checkpoint(bits, group, SHAPE, 60)
            ids = greedy_ids(fixture.export(run, "hf"), prompt, processor.vocab_size())
            added = len(ids) - len(prompt)
            compared += added
            with self.subTest(bits=bits, group=group, tokens=added):
                printed = fixture.run(fixture.program, "-sample", text, "-e", run, "-tokenizer", fixture.tokenizer(), "-temperature", "0",
                                      "-sample_tokens", added, "-dtype", "fp32", "-device", "cpu")
                made, empty, speed, _ = printed.rsplit("\n", 3)
                self.assertEqual((made, empty), (processor.decode(ids), ""))
                self.assertRegex(speed, "tokens/s")
        self.assertGreater(compared, 5 * TOKENS)
