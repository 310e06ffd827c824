"""The Trainer of Hugging Face, watched: a small GPT-2 made from its configuration, so that nothing is fetched.

    python examples/own/hugging_face.py

The data are batches as the model takes them, and the loss is None: the model computes its own from the labels. Needs
`pip install -e '.[transformers]'`.
"""

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

import lab
from lab.probes import Sharpness

STEPS = 200

torch.manual_seed(0)
config = GPT2Config(
    vocab_size=20,
    n_positions=12,
    n_embd=16,
    n_layer=1,
    n_head=2,
    bos_token_id=0,
    eos_token_id=0,
    tie_word_embeddings=False,
)
model = GPT2LMHeadModel(config)

# Sequences that count up by one or by two, so that there is something to learn.
starts, strides = torch.randint(20, (256, 1)), torch.randint(1, 3, (256, 1))
tokens = (starts + strides * torch.arange(12)) % 20
examples = [{"input_ids": row, "labels": row} for row in tokens]

# What is measured: the mean loss of these batches, which the model computes by itself.
batches = [{"input_ids": rows, "labels": rows} for rows in tokens.split(64)]
watch = lab.watch(model, None, batches, probes=[Sharpness(every=25)], folder="runs/hugging_face")

trainer = Trainer(
    model=model,
    args=TrainingArguments(
        output_dir="runs/trainer",
        max_steps=STEPS,
        per_device_train_batch_size=32,
        learning_rate=1e-2,
        logging_steps=10,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    ),
    train_dataset=examples,
    callbacks=[watch.hugging_face()],
)
trainer.train()
