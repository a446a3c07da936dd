"""What `--help` of each command prints: what it does, its main settings and their defaults, examples. 80 columns."""

_MORE = """
See everything: --cfg job prints all settings with their values, --info defaults
the files of conf/ that they come from. debug=true shows an error's whole trace."""

TRAIN = f"""visualchat-train [SETTING=VALUE ...]

Tunes a model on image dialogues, evaluates it, and leaves a folder under
outputs/ with the model, its figures and sample dialogues. Without settings it
trains on the tiny world of drawn shapes, in minutes on a laptop.

  experiment=NAME           a recipe: own_24gb, own_80gb, own_8gpu, paper_*,
                            smoke
  scale=null                tiny: an experiment of the paper, for a laptop
  data=tiny                 the dialogues: tiny, own, corpora (data/source=,
                            data/blend= choose what own and corpora read)
  model/vision=tiny         the vision encoder
  model/language=tiny       the language model
  model/trainable=projector_embedding
                            what trains; lora_language adds adapters,
                            lora_images those of image tokens alone
  model/quantization=none   nf4 or int8 for the frozen language model
  attention=mmca            how image and text tokens attend: causal, numbered,
                            unit, cross, ...
  trainer.max_epochs=2      passes over the data
  trainer/strategy=auto     several GPUs: ddp, zero1 to zero3, fsdp2
  save=full                 the whole model; light: what trained; or both
  init=null                 a saved model's folder to start from
  resume=null               a checkpoint or run folder to continue; auto
  -m                        a sweep: every combination of a=1,2 b=3,4

Examples
  visualchat-train
  visualchat-train attention=causal trainer.max_epochs=1
  visualchat-train -m attention=causal,mmca trainer.max_epochs=1,2
{_MORE}"""

EVALUATE = f"""visualchat-evaluate [SETTING=VALUE ...]

Scores a saved model beside the same model without images, each question given
the true answers before it and, in another column, the model's own. Leaves
figures, predictions and pages in a folder under outputs/evaluations/. A run
that was stopped continues when its line is typed again with hydra.run.dir=.

  folder=null               the model's folder, whole or light; null for the
                            newest under outputs/
  data=tiny                 the data whose held-out dialogues it answers, with
                            data/source= and source.* as in training
  data.validation=0.1       of data=own: a share of the rows (1.0: all), or a
                            file
  evaluation.metrics=[]     beside exact match: multiple_choice, vqa_accuracy,
                            anls, rouge_l, cider_d, ...
  evaluation.modes=[teacher_forced,free_running]
                            what stands before a question
  logger=null               wandb: the figures and all answers in W&B, too
  predictions=null          an evaluation's folder: its figures again, without
                            a model; [ONE,OTHER]: two compared
  answers=null input=null   files of answers, of visualchat-generate or other
                            programs, to the conversations of input=: compared
  vision=null language=null where the backbones of a light folder are now

Examples
  visualchat-evaluate
  visualchat-evaluate evaluation.batch_size=16
  visualchat-evaluate predictions=[outputs/evaluations/a,outputs/evaluations/b]
{_MORE}"""

CHAT = f"""visualchat-chat [SETTING=VALUE ...]

Talks with a saved model in the terminal, with images in any round.

  folder=null               the model's folder, whole or light; null for the
                            newest under outputs/
  temperature=0.0           0 for the most likely answer, up to 1 for variety
  max_new_tokens=128        the most tokens of an answer
  vision=null language=null where the backbones of a light folder are now

Examples
  visualchat-chat
  visualchat-chat temperature=0.7 max_new_tokens=256
{_MORE}"""

GENERATE = f"""visualchat-generate input=FILE [SETTING=VALUE ...]

Answers the conversations of a file, in batches, with one model or several, and
leaves in a folder under outputs/answers/ a line of JSON a conversation for each
model, answers.csv and answers.html, the page with the images. A run that was
stopped continues when its line is typed again with hydra.run.dir=FOLDER.

  input=                    .jsonl, .json or .parquet, or a list of them; the
                            forms are those of data/source=messages
  root=null                 where the images lie that rows name; null for the
                            folder of the first file
  folder=null               the model's folder, whole or light, or [ONE,OTHER];
                            null for the newest under outputs/
  rounds=open               the questions without an answer; all: every one
  max_new_tokens=256        the most tokens of an answer
  temperature=0.0           0 for the likeliest answer, up to 1 for variety
  top_p=null seed=0 stop=[] further settings of sampling; texts that end one
  batch_size=16             answers at a time
  on_error=error            what a bad row does; skip: left out and named
  vision=null language=null where the backbones of a light folder are now

Examples
  visualchat-generate input=questions.jsonl
  visualchat-generate input=questions.jsonl rounds=all \\
      folder=[outputs/a/model,outputs/b/model]
{_MORE}"""

JUDGE = f"""visualchat-judge predictions=FOLDER judge=NAME [SETTING=VALUE ...]

Has a judge behind OpenAI's chat API score the answers of an evaluation, or
compare those of two in both orders. Prompts and verdicts are kept as lines of
JSON; a run that was stopped continues with hydra.run.dir=FOLDER.

  predictions=              the folder of an evaluation, or [ONE,OTHER]
  judge=                    the name of its model on its server
  address=http://localhost:8000/v1
                            of the server; its key, if it wants one, is read
                            from the environment variable OPENAI_API_KEY
  protocol=null             mmdu, sparkles_eval or pairs; null for that of the
                            benchmark, and pairs for two folders
  mode=free_running         whose answers: given the model's own before, or
                            teacher_forced
  images=false              true: the judge is shown the images
  max_tokens=2048           of a verdict
  workers=4                 verdicts at a time
  attempts=5 timeout=120    of a prompt, and seconds of each

Examples
  visualchat-judge predictions=outputs/one judge=NAME
  visualchat-judge predictions=[outputs/one,outputs/two] judge=NAME
{_MORE}"""

SERVE = f"""visualchat-serve [SETTING=VALUE ...]

Serves a saved model over HTTP as OpenAI's clients expect it: chats with images
in any round, plain and streamed. Ctrl-C lets running answers end.

  folder=null               the model's folder, whole or light; null for the
                            newest under outputs/
  host=127.0.0.1 port=8000  where it listens; other hosts need keys
  api_keys=null             one of them must come with each request; better set
                            as the environment variable VISUALCHAT_API_KEYS
  name=visualchat           what clients call the model
  temperature=0.0 max_new_tokens=256
                            where a request does not say
  limits.images=16          and limits.tokens, limits.seconds, ...: what one
                            request may take
  vision=null language=null where the backbones of a light folder are now
  cluster=ray               replicas on this machine or several; then
                            cluster.replicas=2, cluster.address=null, ...

Examples
  visualchat-serve
  visualchat-serve folder=outputs/mine/model port=8001
  visualchat-serve cluster=ray cluster.replicas=4
{_MORE}"""

STUDY = f"""visualchat-study study=NAME [SETTING=VALUE ...]

Runs a study: trains every arm of its plan (conf/study/NAME.yaml) with several
seeds, keeps every answer, and writes a page with tables, intervals, a figure
and what became of each claim of the plan. Runs that are kept are not run again;
stopped by Ctrl-C or killed, the same line continues.

  study=                    the plan
  jobs=2                    runs at a time, each on one thread
  plan.seeds=[0]            fewer seeds or other settings than the plan's
  folder=outputs/studies    where the runs go
  results=docs/results      where the answers, the page and the figure are
  page_only=false           true: the page of what is kept, nothing trained
  again=false               true: all runs again, whatever is kept

Examples
  visualchat-study study=image_numbers
  visualchat-study study=image_numbers page_only=true
{_MORE}"""

WEB = f"""visualchat-web [SETTING=VALUE ...]

Opens a page to chat with a saved model: several images in any round, and where
each answer looked. The API of visualchat-serve is at the same address, and all
of its settings count here, too.

  folder=null               the model's folder, whole or light; null for the
                            newest under outputs/
  page.second.attention=null
                            the same model beside itself, by another kind of
                            attention: causal, mmca, ...
  page.second.folder=null   another model beside it, on the same dialogues
  page.open=true            open a browser, where there is a display

Examples
  visualchat-web
  visualchat-web folder=outputs/mine/model page.second.attention=causal
{_MORE}"""

DATA = f"""visualchat-data ACTION [SETTING=VALUE ...]

Looks at the dialogues that training would read.

  check                     read everything; each bad row with its reason;
                            exit code 1 if there is any
  stats                     lengths, images, rounds and the token budget
  references                whether texts speak of images that exist and were
                            shown by then; with max_unsound=0.01 exit code 1
                            where more of them do not
  show [NUMBER]             one dialogue, with what is supervised in colour
  convert                   Parquet shards with the images inside
  prepare                   build every index, so that training starts at once

  data=tiny                 the dialogues: tiny, own, corpora (data/source=,
                            data/blend= choose what own and corpora read)
  part=null                 train or validation; null for both
  num_workers=0             processes that share the work
  model/language=tiny       whose tokenizer counts

Examples
  visualchat-data show 3
  visualchat-data check data=own data/source=messages source.root=pictures \\
      source.files=[mine.jsonl]
{_MORE}"""

PLAN = f"""visualchat-plan [SETTING=VALUE ...]

Computes what a training run takes before a machine is rented: parameters,
memory of each GPU by part, tokens, steps and days. Downloads no weights, trains
nothing. Takes every setting of visualchat-train, and:

  gpu=h100                  a100, h100, h200, b200, l40s, rtx4090, mi300x
  gpus=8                    of them in each machine (trainer.num_nodes)
  gpu_memory=null           GiB; null for that GPU's
  utilisation=0.4           share of the GPU's peak that a step reaches

Examples
  visualchat-plan experiment=paper_5_2_3 gpus=8 gpu=h100
  visualchat-plan experiment=paper_4_2_1 gpus=1 gpu=rtx4090 \\
      model/quantization=nf4 trainer/strategy=ddp
{_MORE}"""

CONVERT = f"""visualchat-convert ACTION file=FILE folder=FOLDER [SETTING=VALUE ...]

Converts models of the published DeepSpeed-VisualChat code to ours, and back.

  from_published            reads file= and writes folder=
  to_published              reads folder= and writes file=

  file=                     the published code's pytorch_model.bin
  folder=                   a saved model's folder
  model/vision=clip_large   whose configuration the file's encoder has
  model/language=llama2_7b  whose configuration and tokenizer it has

Examples
  visualchat-convert from_published file=published/pytorch_model.bin \\
      folder=converted model/vision=qwen_vl model/language=llama2_13b
  visualchat-convert to_published folder=converted file=back.bin
{_MORE}"""
