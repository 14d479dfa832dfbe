"""Package metadata: what is installed, what it needs, and the console script."""

from setuptools import find_packages, setup

_FINETUNE = ["accelerate>=1.10.1", "nltk>=3.9", "sacrebleu>=2.5", "scikit-learn>=1.6", "scipy>=1.14", "seqeval>=1.2.2"]

setup(
    name="bertmae",
    version="0.1.0",
    description="Distributed pretraining of BERT-style and text-MAE language models, from raw text to transformers",
    license="Apache-2.0",
    python_requires=">=3.11,<3.13",
    packages=find_packages(include=["train", "train.*", "data_pipeline", "data_pipeline.*"]),
    install_requires=[
        "torch>=2.11",
        "deepspeed>=0.19.8",
        "transformers>=5.17",
        "datasets>=5.0",
        "webdataset>=1.0.2",
        "tensorboard>=2.20",
        "mpi4py>=4.1",
        "numpy>=2.0",
        # Languages in a data set's report and in its filter are those of this version.
        "pycld2==0.42",
        "pydantic>=2.10",
        "pyyaml>=6.0",
        # Its hashes decide which documents are near duplicates: another version may find others.
        "rensa==0.5.0",
        # The words of rjieba are found by the dictionary of jieba, so both must have the same one.
        "jieba==0.42.1",
        "rjieba==0.2.2",
        "safetensors>=0.7",
        "tokenizers>=0.22",
        "tqdm>=4.67",
        "xxhash>=3.5",
        "zstandard>=0.23",
    ],
    extras_require={
        # Ids are compared with those of tokenizers for just this version; without it tokenizing is slower.
        "fast": ["tokie==0.1.4"],
        # An MPI runtime, where the machine has none of its own.
        "mpi": ["mpich>=5.0"],
        # Data sets in stores: one driver of fsspec for each kind of address.
        "s3": ["s3fs>=2026.9"],
        "gs": ["gcsfs>=2026.9"],
        "https": ["aiohttp>=3.14"],
        # transformers' Trainer, and metrics.
        "finetune": _FINETUNE,
        # Where the records of a run may go beside TensorBoard.
        "wandb": ["wandb>=0.31"],
        "mlflow": ["mlflow-skinny>=3.17"],
        # Pictures and pages on runs.
        "report": ["matplotlib>=3.10"],
        # What the benchmarks compare with.
        "benchmark": ["accelerate>=1.1"],
        "test": [
            *_FINETUNE,
            "aiohttp>=3.14",
            "flask>=3.1",
            "flask-cors>=6.0",
            "gcp-storage-emulator>=2026.7",
            "gcsfs>=2026.9",
            "hypothesis>=6.150",
            "matplotlib>=3.10",
            "moto[s3]>=5.2",
            "mpich>=5.0",
            "mypy>=2.0",
            "pytest>=9.0",
            "pytest-xdist>=3.8",
            "ruff>=0.15",
            "s3fs>=2026.9",
            "trustme>=1.2",
        ],
    },
    entry_points={"console_scripts": ["bertmae=train.console:main"]},
)
