# The configuration that a run has where none is given with --configfile.

import os
import sys

from snakemake.exceptions import WorkflowError

# The package beside this workflow is the one that its jobs use, installed or not.
sys.path.insert(0, os.path.join(workflow.basedir, "src"))

from cohortgmm.config.file import read_config_file
from cohortgmm.errors import CohortgmmError

DEFAULT_CONFIG = "config/config.yaml"

# A run has one configuration: a file given with --configfile replaces the default one, it is not merged into it.
if not workflow.overwrite_configfiles:
    try:
        # Of some files that it cannot read Snakemake shows a traceback, of others it does not say which.
        if workflow.is_main_process and not read_config_file(DEFAULT_CONFIG):
            raise WorkflowError(f"{os.path.abspath(DEFAULT_CONFIG)} holds no keys: config/README.md lists them")
    except CohortgmmError as error:
        raise WorkflowError(str(error)) from None

    configfile: DEFAULT_CONFIG
