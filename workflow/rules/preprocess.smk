# From the input to one array file per patient.
# REQUIRED INPUTS: CONFIG.input
# OUTPUTS: results/preprocessed/cohort.h5ad, results/preprocessed/summary.json, results/patients.tsv,
#   results/patients/{patient}.npz


# Reports a wrong column before the preprocessing runs. The output of this rule is not an input of the preprocessing,
# not even as `ancient`: Snakemake would then no longer check whether the preprocessing must run again.
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
        "Checking the table of cells of {input.cohort}"
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
    threads: 1  # the last digits of a PCA depend on the number of threads
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
        # The patients' array files are written too, but not declared: otherwise every new table would rerun all fits.
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
