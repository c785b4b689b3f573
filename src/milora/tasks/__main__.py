"""``python -m milora.tasks`` prints the folder of the tasks, for ``lm_eval --include_path``."""

from milora.tasks import folder

print(folder())
