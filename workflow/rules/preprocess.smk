# From the input to one array file per patient.
# REQUIRED INPUTS: CONFIG.input
# OUTPUTS: results/preprocessed/cohort.h5ad, results/preprocessed/summary.json, results/patients.tsv,
#   results/patients/{patient}.npz


# A wrong column is said at once, not after the preprocessing. The preprocessing does not wait for it: a job that runs keeps
# Snakemake from looking for reasons of its own in those that follow, also where they take its output as `ancient`.
rule check_input:
    input:
        cohort=RUN.input_file,
        sheet=RUN.sheet_file,
    output:
        touch("results/preprocessed/input.checked"),
    log:
        "results/logs/check_input.log",
    priority: 1  # before the preprocessing
    conda:
        ENVIRONMENT
    resources:
        mem_mb=requests.memory("check_input", ("obs",)),
        runtime=requests.minutes("check_input"),
    params:
        columns=CONFIG.further_columns(),
        options={key: getattr(CONFIG, key) for key in ("patient_col", "label_col", "on_mixed_label")},
        gmm_key=literal(CONFIG.gmm_key),
        code=code_of("scripts/check_input.py"),
    message:
        "Looking at the table of cells of {input.cohort}"
    script:
        "../../scripts/check_input.py"


rule preprocess:
    input:
        cohort=RUN.input_file,
    output:
        summary="results/preprocessed/summary.json",
        cohort="results/preprocessed/cohort.h5ad",
    log:
        "results/logs/preprocess.log",
    conda:
        ENVIRONMENT
    threads: 1  # a PCA on another number of threads differs in its last digits
    resources:
        mem_mb=requests.memory("preprocess"),
        runtime=requests.minutes("preprocess"),
    params:
        options=CONFIG.preprocess.model_dump(),
        patient_col=literal(CONFIG.patient_col),
        seed=CONFIG.seed,
        code=code_of("scripts/preprocess.py"),
    message:
        "Normalising the counts and computing the embedding of {input.cohort}"
    script:
        "../../scripts/preprocess.py"


checkpoint split:
    input:
        cohort=cohort_to_split,
        sheet=RUN.sheet_file,
        checked="results/preprocessed/input.checked" if CONFIG.preprocess.enabled else [],
        summary="results/preprocessed/summary.json" if CONFIG.preprocess.enabled else [],
    output:
        # And the patients' array files beside it: declared, they would rerun with every new table.
        table=report(
            TABLE,
            category=in_report("Tables"),
            caption="../report/patients.rst",
            labels=report_labels(lambda wildcards: {"table": closing.patients_label(TABLE)}),
        ),
        positions=POSITIONS,
    log:
        "results/logs/split.log",
    conda:
        ENVIRONMENT
    resources:
        mem_mb=requests.split_memory("split", EMBEDDING),
        runtime=requests.minutes("split"),
    params:
        folder=lambda wildcards, output: os.path.join(os.path.dirname(output.table), "patients"),
        options=CONFIG.split_options(),
        gmm_key=literal(CONFIG.gmm_key),
        code=code_of("scripts/split.py"),
    message:
        "Splitting {input.cohort} by patient"
    script:
        "../../scripts/split.py"
