# 86M parameters, 4 bits: 2.5e18 FLOP. What each number comes from:
#   GPT-3      Language Models are Few-Shot Learners, arXiv 2005.14165, table 2.1 (the row of 125M) and appendix B
#   Llama 2    arXiv 2307.09288, section 2.2: AdamW, betas, decay, clipping, floor
#   MiniCPM    arXiv 2404.06395: the warmup-stable-decay schedule
#   QAT        Compute-Optimal Quantization-Aware Training, arXiv 2509.22935: sizes, the fraction, the fused cooldown
#   ParetoQ    arXiv 2502.02631: the quantizers; its tenth of the tokens is what the planner's law replaces
# Published rates are for cosine schedules and full precision: scripts/recipes are starting points, not tuned optima.
recipe=(
    -b 4                # ours: of the widths whose cooldown fuses with QAT the one most runtimes read
    -qat_frac auto      # QAT: exp(-6.7297 / ln S), S = tokens per parameter byte; -plan prints it
    -cooldown auto      # QAT: fused from 3 bits up, classic below
    -tokens 4.3B        # ours: 50 tokens a parameter; Chinchilla's 20 (arXiv 2203.15556) are for training cost alone
    -seq_len 2048       # GPT-3, section 2.1
    -total_batch 256    # GPT-3, table 2.1: 0.5M tokens, 256 sequences
    -batch 32           # ours: about 18 GiB with everything; any divisor gives the same training
    -lr 6e-4            # GPT-3, table 2.1
    -warmup 715         # GPT-3, appendix B: 375M tokens
    -schedule wsd       # MiniCPM
    -cooldown_frac 0.2  # arXiv 2405.18392: a fifth matches cosine (MiniCPM: a tenth is enough)
    -final_lr_frac 0.1  # Llama 2
    -beta1 0.9          # Llama 2 and GPT-3
    -beta2 0.95         # Llama 2 and GPT-3
    -eps 1e-8           # GPT-3 (Llama 2: 1e-5)
    -weight_decay 0.1   # Llama 2 and GPT-3
    -clip 1.0           # Llama 2 and GPT-3
    -val_every 500      # this and below: ours
    -val_sequences 512
    -save_every 500
    -print_every 10
)
