"""SVF trained by reinforcement, as in Transformer^2 (Sun et al., arXiv 2501.06252), on GSM8K.

    accelerate launch --num_processes 1 examples/svf_reinforce.py --model MODEL --data gsm8k_train.jsonl.gz --output out

The paper maximises, with z the factors of the singular values, W' = U diag(S z) V^T, and a reward r of -1 or +1,

    J(z) = E[ log pi_W'(y | x) r(y, x) ] - lambda KL(pi_W' || pi_W),      y drawn from pi_W'

What TRL's RLOOTrainer minimises here, for G completions y_1 .. y_G of each prompt, is

    - mean_i  rho_i A_i,    R_i = r_i - beta sum_t [log pi_W'(y_it) - log pi_W(y_it)],    A_i = R_i - mean_{j != i} R_j

where rho_i = pi_W'(y_i) / pi_old(y_i) is 1 because each batch is drawn anew for its one update, so that its gradient is
A_i grad log pi_W'(y_i) and the clipping of rho never acts. How it stands to the paper:

- same gradient on average. The baseline, the mean reward of the other completions, does not depend on y_i: it takes
  variance away and nothing else. With G = 2, the least that TRL takes, it is the reward of the other one. A prompt
  whose completions all get the same reward gives no gradient, where plain REINFORCE gives one that is zero on average;
- same KL, KL(pi_W' || pi_W). It is estimated from the drawn completions, summed over tokens, as a part of the reward.
  beta is the paper's lambda, 0 to 0.3. pi_W is the model with its adapter disabled, the base to the last bit.
  (GRPOTrainer would add another estimate, token by token, to the loss, and divide by lengths.);
- completions are drawn at temperature 1 from the whole distribution, so that they are pi_W's own. The authors' code
  takes the greedy one, and its KL is the other way round, KL(pi_W || pi_W'), with a coefficient of 0;
- a completion that is cut off at --max_completion_length counts by the last number that it holds, mostly as wrong.

Defaults follow the paper where a value is known: AdamW, learning rate 2e-3, cosine, 256 completions a step, gradients
clipped at 1e-3 (the authors' code), the MLP alone (the authors' code). z is trained in float32.
"""

import argparse
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl.trainer.rloo_config import RLOOConfig
from trl.trainer.rloo_trainer import RLOOTrainer

from milora import SpectralConfig
from milora.data.files import read_rows
from milora.tasks.extraction import flexible_number, same_number

INSTRUCTION = "Solve the problem step by step. End with one line 'The answer is: N' where N is a number.\n\n"


def reward(completions: list[Any], gold: list[str], **_: Any) -> list[float]:
    """+1 where the last number of a completion is the gold answer exactly, else -1."""
    texts = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
    return [1.0 if same_number(flexible_number(t), g) else -1.0 for t, g in zip(texts, gold, strict=True)]


def prompts(file: Path, tokenizer: Any, limit: int | None) -> Dataset:
    """GSM8K's rows as prompts, in the chat form where the model has one, and the number after '####'."""
    rows = []
    for row in read_rows(file)[:limit]:
        text = INSTRUCTION + row["question"]
        prompt = [{"role": "user", "content": text}] if tokenizer.chat_template else f"{text}\n"
        rows.append({"prompt": prompt, "gold": row["answer"].rpartition("####")[2].strip()})
    return Dataset.from_list(rows)


def arguments(asked: argparse.Namespace) -> RLOOConfig:
    """TRL's arguments for one update on each batch of fresh completions."""
    return RLOOConfig(
        output_dir=str(asked.output),
        max_steps=asked.steps,
        per_device_train_batch_size=asked.batch,
        gradient_accumulation_steps=asked.accumulate,
        steps_per_generation=asked.accumulate,  # a batch is drawn once for each update
        num_iterations=1,
        num_generations=asked.generations,
        beta=asked.beta,
        normalize_advantages=False,
        mask_truncated_completions=False,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        max_completion_length=asked.max_completion_length,
        learning_rate=asked.learning_rate,
        lr_scheduler_type="cosine",
        max_grad_norm=asked.max_grad_norm,
        optim="adamw_torch",
        bf16=asked.bf16,
        use_cpu=asked.cpu,
        seed=asked.seed,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


def adapter(asked: argparse.Namespace) -> SpectralConfig:
    """The adapter; a method with a rank takes --r."""
    return SpectralConfig(
        method=asked.method, r=asked.r, target_modules=asked.target_modules.split(","), task_type="CAUSAL_LM"
    )


class QuietRLOOTrainer(RLOOTrainer):
    """Without TRL's report to its makers over the network."""

    def _send_telemetry(self) -> None:
        pass


def main(words: list[str] | None = None) -> RLOOTrainer:
    """Train, save the adapter, and return the trainer with its log."""
    asked = parse(words)
    tokenizer = AutoTokenizer.from_pretrained(asked.model, padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    trainer = QuietRLOOTrainer(
        AutoModelForCausalLM.from_pretrained(asked.model, dtype="float32" if asked.cpu else "auto"),
        reward_funcs=reward,
        args=arguments(asked),
        train_dataset=prompts(asked.data, tokenizer, asked.limit),
        processing_class=tokenizer,
        peft_config=adapter(asked),
    )
    trainer.train()
    trainer.save_model(str(asked.output))
    return trainer


def parse(words: list[str] | None) -> argparse.Namespace:
    """The command line."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--model", required=True, help="a folder of safetensors, or a hub name")
    flags.add_argument("--data", type=Path, required=True, help="GSM8K's rows: question, answer (JSONL, also .gz)")
    flags.add_argument("--output", type=Path, required=True)
    flags.add_argument("--method", default="svf", help="any method of milora")
    flags.add_argument("--r", type=int, default=32, help="for the methods that have a rank; svf has none")
    flags.add_argument("--target_modules", default="gate_proj,up_proj,down_proj", help="separated by commas")
    flags.add_argument("--beta", type=float, default=0.1, help="the paper's lambda: 0, 0.1, 0.2 or 0.3")
    flags.add_argument("--generations", type=int, default=2, help="completions of a prompt, G")
    flags.add_argument("--batch", type=int, default=32, help="completions that a device trains on at once")
    flags.add_argument("--accumulate", type=int, default=8, help="times --batch: completions of an update")
    flags.add_argument("--steps", type=int, default=200)
    flags.add_argument("--learning_rate", type=float, default=2e-3)
    flags.add_argument("--max_grad_norm", type=float, default=1e-3)
    flags.add_argument("--max_completion_length", type=int, default=400)
    flags.add_argument("--limit", type=int, help="rows of the data to use")
    flags.add_argument("--seed", type=int, default=42)
    flags.add_argument("--bf16", action="store_true", help="compute in bfloat16")
    flags.add_argument("--cpu", action="store_true")
    return flags.parse_args(words)


if __name__ == "__main__":
    main()
