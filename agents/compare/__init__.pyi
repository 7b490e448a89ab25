from .runs import Results as Results
from .runs import collect as collect
from .runs import compare as compare
from .runs import saved_study as saved_study
from .study import Study as Study
from .study import Task as Task
from .study import load_study as load_study
from .summary import summarize as summarize
