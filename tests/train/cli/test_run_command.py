from train.cli.run_command import command_to_resume


def test_the_command_that_resumes_is_the_same_with_resume():
    argv = ["--config", "my config.yaml", "--overwrite", "train.max_hours=2"]
    assert command_to_resume("jlora lm", argv) == "jlora lm --config 'my config.yaml' train.max_hours=2 --resume"
    assert command_to_resume("jlora lm", ["--resume", "seed=1"]) == "jlora lm seed=1 --resume"
