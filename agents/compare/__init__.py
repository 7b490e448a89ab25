"""Are latents worth it? Training runs of several arms on several tasks with several seeds, and their results.

study = load_study("study.toml")
results = compare(study, "runs/compare")
print(summarize(results)["verdict"]["headline"])
"""

from agents.compare.runs import Results, collect, compare, saved_study
from agents.compare.study import Study, Task, load_study
from agents.compare.summary import summarize

__all__ = ["Results", "Study", "Task", "collect", "compare", "load_study", "saved_study", "summarize"]
