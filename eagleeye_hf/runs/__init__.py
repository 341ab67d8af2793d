"""The whole job: search, prune, fine-tune, measure, save, publish. The recipes and the command line call it."""
