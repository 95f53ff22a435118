# Figures and tables to judge the mixtures by.
# REQUIRED INPUTS: the cohort, results/patients/{patient}.npz, results/models/{patient}.npz, the tables
# OUTPUTS: results/qc/*.tsv, results/qc/*.svg, results/qc/*.png, results/qc/patients/{patient}.svg, .png,
#   results/qc/corrections/{patient}.svg, .png, results/qc/efficiency.tsv


rule qc_cells:
    input:
        COHORT_FILE,
    output:
        "results/qc/cells.npz",
    log:
        "results/logs/qc_cells.log",
    conda:
        ENVIRONMENT
    threads: 1  # a UMAP on several threads is not reproducible
    resources:
        mem_mb=requests.memory("qc_cells", EMBEDDING),
        runtime=requests.minutes("qc_cells"),
    params:
        options={
            "use_rep": CONFIG.use_rep,
            "celltype_col": CONFIG.celltype_col,
            "umap": CONFIG.qc.umap,
            "max_cells": CONFIG.qc.max_cells,
            "seed": CONFIG.seed,
        },
        code=code_of("scripts/qc_cells.py"),
    message:
        "Computing the UMAP for the figures"
    script:
        "../../scripts/qc_cells.py"


rule qc_tables:
    input:
        annotation="results/qc/cells.npz",
        table=TABLE,
        scores=SCORES,
        selection="results/selection.tsv",
        positions=POSITIONS,
        cells=all_cells,
        models=per_unit("results/models/{patient}.npz"),
    output:
        diagnostics=report(
            "results/qc/diagnostics.tsv",
            category=in_report("Tables"),
            caption="../report/diagnostics.rst",
            labels={"table": "diagnostics of every mixture"},
        ),
        weights="results/qc/weights.tsv",
        composition="results/qc/composition.tsv",
    log:
        "results/logs/qc_tables.log",
    conda:
        ENVIRONMENT
    resources:
        mem_mb=requests.memory("qc_tables"),
        runtime=requests.minutes("qc_tables"),
    params:
        refit=CONFIG.gmm.refit,
        code=code_of("scripts/qc_tables.py"),
    message:
        "Computing the diagnostics of all mixtures"
    script:
        "../../scripts/qc_tables.py"


for figure in FIGURES:

    rule:
        name:
            f"qc_{figure}"
        input:
            scores=SCORES,
            selection="results/selection.tsv",
            diagnostics="results/qc/diagnostics.tsv",
            weights="results/qc/weights.tsv",
            composition="results/qc/composition.tsv",
        output:
            report(
                f"results/qc/{figure}.svg",
                category=in_report("Cohort"),
                caption=f"../report/{figure}.rst",
                labels=report_labels(lambda wildcards, figure=figure: {"figure": figure}),
            ),
            f"results/qc/{figure}.png",
        log:
            f"results/logs/qc_{figure}.log",
        conda:
            ENVIRONMENT
        resources:
            mem_mb=requests.memory("qc_cohort"),
            runtime=requests.minutes("qc_cohort"),
        params:
            figure=figure,
            metric=CONFIG.gmm.k_selection_metric,
            code=code_of("scripts/qc_cohort.py"),
        message:
            "Drawing {params.figure} of the cohort"
        script:
            "../../scripts/qc_cohort.py"


rule qc_patient:
    input:
        cells=cells_of,
        model="results/models/{patient}.npz",
        scores="results/selection/{patient}.tsv",
        positions=POSITIONS,
        annotation="results/qc/cells.npz",
    output:
        report(
            "results/qc/patients/{patient}.svg",
            category=in_report("Patients"),
            caption="../report/patient.rst",
            labels=report_labels(patient_label),
        ),
        "results/qc/patients/{patient}.png",
    log:
        "results/logs/qc_patient/{patient}.log",
    conda:
        ENVIRONMENT
    resources:
        mem_mb=requests.memory("qc_patient"),
        runtime=requests.minutes("qc_patient"),
    params:
        patient=lambda wildcards: patient_name(wildcards.patient),
        metric=CONFIG.gmm.k_selection_metric,
        max_cells=CONFIG.qc.max_cells,
        seed=CONFIG.seed,
        code=code_of("scripts/qc_patient.py"),
    message:
        "Drawing {wildcards.patient}"
    script:
        "../../scripts/qc_patient.py"


if CONFIG.gmm.has_incomplete_data:

    rule qc_correction:
        input:
            cells=cells_of,
            model="results/models/{patient}.npz",
            described=RUN.further_files,
        output:
            report(
                "results/qc/corrections/{patient}.svg",
                category=in_report("Corrections"),
                caption="../report/correction.rst",
                labels=report_labels(patient_label),
            ),
            "results/qc/corrections/{patient}.png",
        log:
            "results/logs/qc_correction/{patient}.log",
        conda:
            ENVIRONMENT
        resources:
            mem_mb=requests.memory("qc_correction"),
            runtime=requests.minutes("qc_correction"),
        params:
            patient=lambda wildcards: patient_name(wildcards.patient),
            options=fit_options(CONFIG.gmm),
            max_cells=CONFIG.qc.max_cells,
            seed=CONFIG.seed,
            code=code_of("scripts/qc_correction.py"),
        message:
            "Drawing the corrections of {wildcards.patient}"
        script:
            "../../scripts/qc_correction.py"


# Runs last, as its table lists all jobs before it.
rule efficiency:
    input:
        "results/cohort_gmm.h5ad",
        qc_outputs,
    output:
        report(
            "results/qc/efficiency.tsv",
            category=in_report("Tables"),
            caption="../report/efficiency.rst",
            labels={"table": "memory and time, requested and used"},
        ),
    log:
        "results/logs/efficiency.log",
    conda:
        ENVIRONMENT
    resources:
        mem_mb=requests.memory("efficiency"),
        runtime=requests.minutes("efficiency"),
    params:
        logs=lambda wildcards, output: os.path.join(os.path.dirname(os.path.dirname(output[0])), "logs"),
        code=code_of("scripts/efficiency.py"),
    message:
        "Comparing the requests of jobs with what they used"
    script:
        "../../scripts/efficiency.py"
