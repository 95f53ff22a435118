# Scores of all candidates, and the choice of k.
# REQUIRED INPUTS: results/fits/{patient}/k{k}.json
# OUTPUTS: results/selection/{patient}.tsv, results/scores.tsv, results/selection.tsv


# The table of a patient has all criteria, so that this rule does not run again if another criterion is configured.
rule select:
    input:
        scores=expand("results/fits/{{patient}}/k{k}.json", k=CONFIG.gmm.candidates),
    output:
        table="results/selection/{patient}.tsv",
    log:
        "results/logs/select/{patient}.log",
    conda:
        ENVIRONMENT
    resources:
        mem_mb=requests.memory("select"),
        runtime=requests.minutes("select"),
    params:
        code=code_of("scripts/select.py"),
    message:
        "Comparing the candidates of {wildcards.patient}"
    script:
        "../../scripts/select.py"


rule select_cohort:
    input:
        tables=per_unit("results/selection/{patient}.tsv"),
    output:
        scores=report(
            SCORES,
            category=in_report("Tables"),
            caption="../report/scores.rst",
            labels={"table": "scores of every patient and k"},
        ),
        selection=report(
            "results/selection.tsv",
            category=in_report("Tables"),
            caption="../report/selection.rst",
            labels={"table": "selection of k for every patient"},
        ),
    log:
        "results/logs/select_cohort.log",
    conda:
        ENVIRONMENT
    resources:
        mem_mb=requests.memory("select_cohort"),
        runtime=requests.minutes("select_cohort"),
    params:
        metric=CONFIG.gmm.k_selection_metric,
        code=code_of("scripts/select_cohort.py"),
    message:
        "Collecting the scores of all patients"
    script:
        "../../scripts/select_cohort.py"
