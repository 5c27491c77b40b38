"""The Python API, for notebooks and scripts; `import comp` loads it when a name is first used.

config = comp.load_config("configs/quickstart.yaml", "train.epochs=5")
run = comp.train(config)
suite = comp.predict(run, views="flip", adapt="bn")
photos = comp.predict(run, images=["photos", "more/*.jpg"])
run.report("report.html")
comp.check(run.submission())
both = comp.ensemble([run, comp.train(config.model_copy(update={"seed": 1}))])
comp.leaderboard()
"""

from comp.api.run import Run
from comp.api.training import cross_validate, ensemble, load_config, predict, resume, train, tune
from comp.api.writing import check, check_data, export, export_kaggle, init, leaderboard, report
from comp.ensembles.packaged import predict_package
from comp.runtime.progress import quiet

__all__ = [
    "Run",
    "check",
    "check_data",
    "cross_validate",
    "ensemble",
    "export",
    "export_kaggle",
    "init",
    "leaderboard",
    "load_config",
    "predict",
    "predict_package",
    "quiet",
    "report",
    "resume",
    "train",
    "tune",
]
