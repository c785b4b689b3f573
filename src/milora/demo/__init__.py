"""The whole path on a small real model: fine-tune, evaluate, measure forgetting, export, reload in stock PEFT."""
