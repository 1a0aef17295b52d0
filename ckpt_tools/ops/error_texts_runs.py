"""What trainers print when a checkpoint does not fit the run, or was never whole; see ``error_texts``."""

from __future__ import annotations

from ckpt_tools.ops.error_texts import INFO, LATEST, VERIFY, ErrorText

RUNS: tuple[ErrorText, ...] = (
    ErrorText(
        "save-interrupted-state",
        "the save was interrupted: trainer_state.json was never written",
        (r"(?:no such file|FileNotFound)[^\n]{0,400}trainer_state\.json", r"trainer_state\.json[^\n]{0,80}not found"),
        (
            "the Trainer writes trainer_state.json last; without it the save was killed (preempted, out of memory)",
            "resuming picks the directory with the highest number and does not look inside",
        ),
        (LATEST, VERIFY),
        ("save-interrupted",),
    ),
    ErrorText(
        "best-model-gone",
        "the best model that trainer_state.json names is gone",
        (r"samefile[^\n]{0,200}", r"best_model_checkpoint[^\n]{0,120}(?:not|missing|gone)"),
        (
            "best_model_checkpoint is a path of the machine that saved; after a move or a deletion it leads nowhere",
            "transformers 5 sets it to null when it resumes; older versions stop at the end of the training",
        ),
        ("ckpt info {path}:trainer_state.json:best_model_checkpoint", VERIFY),
        ("best-model-missing",),
    ),
    ErrorText(
        "disk-full",
        "the disk or the quota was full while saving: that checkpoint is damaged",
        (
            r"PytorchStreamWriter failed writing",
            r"unexpected pos \d+ vs \d+",
            r"os error 28\b",
            r"no space left on device",
            r"disk quota exceeded",
            r"os error 122\b",
        ),
        (
            "the file that was being written is cut short; files after it are missing",
            "make room, then let the run go on from the newest whole checkpoint",
        ),
        (LATEST, VERIFY, "df -h {run}"),
        ("file-cut-short", "save-interrupted"),
    ),
    ErrorText(
        "placeholder",
        "an empty placeholder was saved in place of the weights (DeepSpeed ZeRO-3)",
        (r"torch\.Size\(\[0\]\) from checkpoint", r"shape torch\.Size\(\[0\]\)"),
        (
            "under ZeRO-3 each process holds a part, and what was saved is the empty rest; the training was fine",
            "the weights are in global_step*/ of the checkpoint if it has one: gather them with `ckpt merge`, or with"
            " zero_to_fp32.py",
            "for the next run set stage3_gather_16bit_weights_on_model_save to true",
        ),
        (VERIFY, "ckpt merge {path}/global_step* MERGED"),
    ),
    ErrorText(
        "prefix",
        "every key has a prefix of torch.compile or DistributedDataParallel",
        (r"[\"'](?:module\.)?_orig_mod\.", r"(?:unexpected|missing) key[^\0]{0,200}?[\"']module\."),
        (
            "the weights were saved from the wrapped model; the names in the file begin with _orig_mod. or module.",
            "load them into the wrapped model, or strip the prefix from every key",
        ),
        ("ckpt info --tensors {path}", VERIFY),
    ),
    ErrorText(
        "embedding-rows",
        "the vocabulary of the file is not that of the model",
        (
            r"size mismatch for \S*(?:embed_tokens|lm_head|wte|embeddings?)\S*",
            r"size mismatch for \S*(?:modules_to_save)",
        ),
        (
            "tokens were added to one of the two, or the embeddings were padded: the number of rows differs",
            "resize the model's embeddings to the file's rows before you load",
        ),
        ("ckpt info --tensors --filter '*embed*' {path}", VERIFY),
    ),
    ErrorText(
        "size-mismatch",
        "the file belongs to a model of another shape",
        (r"size mismatch for \S+", r"copying a param with shape"),
        ("another size or version of the model, or an adapter of another rank", "compare the shapes with the config"),
        ("ckpt info --tensors {path}", VERIFY),
        general=True,
    ),
    ErrorText(
        "optimizer-groups",
        "the optimizer was saved for another set of trainable parameters",
        (
            r"parameter group that doesn'?t match the size of optimizer'?s group",
            r"different number of parameter groups",
        ),
        (
            "something was frozen or unfrozen, or LoRA and full tuning were mixed; an optimizer's state has no names",
            "resume with the same parameters trainable, or without optimizer.pt and scheduler.pt",
        ),
        (INFO, VERIFY),
    ),
    ErrorText(
        "optimizer-order",
        "the optimizer's state was loaded for other parameters, or in another order",
        (r"the size of tensor a \(\d+\) must match the size of tensor b \(\d+\)",),
        (
            "same number of parameters, other order: torch compares no shapes when it loads, the first step fails",
            "if this came from optimizer.step(), compare the shapes in optimizer.pt with the model's",
        ),
        (INFO, VERIFY),
    ),
    ErrorText(
        "world-size",
        "the checkpoint was saved by another number of GPUs",
        (r"DP world size of \d+ but the current world size is \d+", r"automatic adjustment of ZeRO"),
        (
            "ZeRO's parts fit the number of processes that wrote them and no other",
            "resume on that number, or convert to a universal checkpoint first (ds_to_universal.py)",
        ),
        (INFO, VERIFY),
        ("world-size",),
    ),
    ErrorText(
        "rank-files",
        "files of some ranks are missing, or those of two runs are mixed",
        (
            r"expected \d+ of '?\*_optim_states\.pt'?",
            r"zero_pp_rank_\d+_mp_rank_\d+\w*\.pt",
            r"_optim_states\.pt'?[^\n]{0,60}(?:not found|no such file)",
        ),
        (
            "each process writes its own file; one did not, or each node kept its own on a disk of its own",
            "list the ranks, and copy what the other nodes have into the same directory",
        ),
        ("ls {path}/global_step*", VERIFY),
        ("rank-files-gap",),
    ),
    ErrorText(
        "deepspeed-latest",
        "DeepSpeed's pointer file `latest` is missing",
        (r"unable to find latest file", r"unable to find 'latest' file"),
        ("it is a line of text with the tag to load, such as global_step500; choose one of those that are there",),
        ("ls -d {path}/global_step*", VERIFY),
    ),
    ErrorText(
        "dcp-metadata",
        "a distributed checkpoint has no .metadata: its save did not end",
        (
            r"assert metadata is not None",
            r"metadata is None",
            r"(?:no such file|FileNotFound)[^\n]{0,300}\.metadata\b",
        ),
        (".metadata is written last; without it the other files cannot be put together", "fall back to an older one"),
        (LATEST, VERIFY),
    ),
    ErrorText(
        "shard-missing",
        "a file of the checkpoint is missing",
        (
            r"(?:no such file|FileNotFound)[^\n]{0,300}-\d{5}-of-\d{5}\.(?:safetensors|bin)",
            r"does not appear to have a file named",
            r"no file named [^\n]{0,120}(?:safetensors|\.bin)",
        ),
        ("the index names a file that is not there: an interrupted copy, or a download of only some files",),
        (VERIFY, LATEST),
        ("shard-missing",),
    ),
    ErrorText(
        "no-valid-checkpoint",
        "the path is not a checkpoint that the Trainer can resume",
        (
            r"can'?t find a valid checkpoint at",
            r"no valid checkpoint found in output directory",
            r"is not a valid checkpoint",
        ),
        (
            "mostly the run's directory in place of checkpoint-N, or a bare number, or an export without optimizer",
            "no weights file at all gives the same message",
        ),
        (INFO, LATEST),
        ("weights-missing", "saved-without-optimizer"),
    ),
    ErrorText(
        "old-state",
        "trainer_state.json was written by a newer, or a much older, transformers",
        (
            r"TrainerState[^\n]{0,60}unexpected keyword argument",
            r"__init__\(\) got an unexpected keyword argument '?(?:best_global_step|stateful_callbacks)",
        ),
        (
            "its keys become arguments of a class, so that one unknown key stops the resume",
            "use the transformers that wrote it, or a newer one",
        ),
        (INFO,),
    ),
    ErrorText(
        "adapter-config",
        "the adapter was written by a newer peft",
        (r"(?:Lora|Peft|Ada\w+)Config[^\n]{0,60}unexpected keyword argument", r"can'?t find 'adapter_config\.json'"),
        ("its configuration has keys that this peft does not know, or is not there",),
        (INFO, "pip install -U peft"),
    ),
    ErrorText(
        "dcp-other",
        "a distributed checkpoint could not be read",
        (r"CheckpointException",),
        ("the cause stands in the lines below the word CheckpointException: paste those",),
        (VERIFY, LATEST),
        general=True,
    ),
)
