# All mixtures in one copy of the cohort.
# REQUIRED INPUTS: the cohort, results/patients/{patient}.npz, results/models/{patient}.npz, results/scores.tsv
# OUTPUTS: results/cohort_gmm.h5ad


rule merge:
    input:
        source=RUN.input_file,
        cohort=COHORT_FILE,
        table=TABLE,
        scores=SCORES,
        positions=POSITIONS,
        cells=all_cells,
        models=per_unit("results/models/{patient}.npz"),
    output:
        "results/cohort_gmm.h5ad",
    log:
        "results/logs/merge.log",
    conda:
        ENVIRONMENT
    resources:
        mem_mb=requests.merge_memory("merge", CONFIG.gmm),
        runtime=requests.minutes("merge"),
    params:
        patient_col=literal(CONFIG.patient_col),
        gmm=CONFIG.gmm.model_dump(exclude={"verbose"}),
        component_sharing=CONFIG.component_sharing,
        use_rep=literal(CONFIG.use_rep),
        gmm_key=literal(CONFIG.gmm_key),
        source=literal(CONFIG.input),
        seed=CONFIG.seed,
        config=literal(CONFIG.provenance_json()),
        code=code_of("scripts/merge.py"),
    message:
        "Writing all mixtures to {output}"
    script:
        "../../scripts/merge.py"
