"""-hellaswag: its right answers are those that transformers finds with the exported weights."""
import unittest

import fixture
import stories
import torch
import transformers

transformers.utils.logging.disable_progress_bar()
torch.set_num_threads(1)


@torch.no_grad()
def theirs(folder):
    """(right by mean loss, right by its sum), and how many contexts were cut, from the texts on."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    right, cut = [0, 0], 0
    for row in stories.examples():
        context = tokenizer(row["ctx"])["input_ids"]  # with the begin token
        sums, means, is_cut = [], [], False
        for ending in row["endings"]:
            ids = tokenizer(row["ctx"] + " " + ending)["input_ids"]
            completion = len(ids) - len(context)
            is_cut |= len(ids) > fixture.SEQUENCE + 1
            ids = torch.tensor(ids[-fixture.SEQUENCE - 1:])
            logits = model(ids[None, :-1]).logits[0]
            losses = torch.nn.functional.cross_entropy(logits, ids[1:], reduction="none")[-completion:]
            sums.append(losses.sum().item())
            means.append(losses.mean().item())
        right[0] += means.index(min(means)) == row["label"]
        right[1] += sums.index(min(sums)) == row["label"]
        cut += is_cut
    return tuple(right), cut


class HellaswagTest(unittest.TestCase):
    def test_right_answers_are_transformers(self):
        for bits, weights in ((16, "full precision"), (2, "quantized, 2 bits"), (4, "quantized, 4 bits")):
            with self.subTest(bits=bits):
                run = fixture.checkpoint(bits)
                ours, (expected, cut) = stories.right_answers(run)[weights], theirs(fixture.export(run, "hf"))
                self.assertEqual((ours.by_mean, ours.by_sum), expected)
                self.assertEqual(ours.cut, cut)
                self.assertGreater(cut, 0)  # so that it is tested
