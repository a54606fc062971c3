/* Training GPT-2 in plain C: what train_gpt2_basic.mojo does, as an opponent for the bench.

    gcc -Ofast -march=native bench/train_gpt2.c -o train_gpt2_c -lm               one thread
    gcc -Ofast -march=native -fopenmp bench/train_gpt2.c -o train_gpt2_omp -lm    all cores

Layers, files, batches and the lines it prints are those of train_gpt2_basic.mojo, where they are explained. The matrix
products take eight positions at a time, so that a row of weights is read once for eight dot products; OpenMP splits
them over positions, or over outputs where positions are summed up. It neither tokenizes nor samples.

Capitals are dimensions: N = B*T positions, C channels, OC output channels, NH heads of HS channels, V words, Vp with
padding. dX is the gradient of the loss with respect to X; backward passes add into it. Arrays are row by row. */

#define _GNU_SOURCE /* M_PI, clock_gettime, glob */
#include <errno.h>
#include <glob.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { TILE = 8 }; /* positions that share a row of weights */

static void fail(const char *what, const char *path, const char *remedy) {
    fprintf(stderr, "%s %s: %s\n", what, path, remedy);
    exit(1);
}

static float *zeros(size_t size) {
    float *x = calloc(size, sizeof(float));
    if (!x) {
        fprintf(stderr, "memory: cannot reserve %zu floats; use a smaller -b or -t\n", size);
        exit(1);
    }
    return x;
}

/* ----- layers ----- */

static void embedding_forward(float *out, const int *tokens, const float *wte, const float *wpe, int B, int T, int C) {
    for (int n = 0; n < B * T; n++)
        for (int c = 0; c < C; c++) out[(size_t)n * C + c] = wte[(size_t)tokens[n] * C + c] + wpe[n % T * C + c];
}

static void embedding_backward(float *dwte, float *dwpe, const float *dout, const int *tokens, int B, int T, int C) {
    for (int n = 0; n < B * T; n++) {
        for (int c = 0; c < C; c++) {
            float d = dout[(size_t)n * C + c];
            dwte[(size_t)tokens[n] * C + c] += d;
            dwpe[n % T * C + c] += d;
        }
    }
}

static void mean_and_rstd(const float *x, int C, float *mean, float *rstd) {
    float sum = 0, squares = 0;
    for (int c = 0; c < C; c++) sum += x[c];
    *mean = sum / C;
    for (int c = 0; c < C; c++) squares += (x[c] - *mean) * (x[c] - *mean);
    *rstd = 1 / sqrtf(squares / C + 1e-5f);
}

/* out = norm * weight + bias with norm = (inp - mean) * rstd. out and inp (N,C), weight and bias (C). */
static void layernorm_forward(float *out, const float *inp, const float *weight, const float *bias, int N, int C) {
    for (int n = 0; n < N; n++) {
        const float *x = inp + (size_t)n * C;
        float mean, rstd;
        mean_and_rstd(x, C, &mean, &rstd);
        for (int c = 0; c < C; c++) out[(size_t)n * C + c] = (x[c] - mean) * rstd * weight[c] + bias[c];
    }
}

static void layernorm_backward(float *dinp, float *dweight, float *dbias, const float *dout, const float *inp,
                               const float *weight, int N, int C) {
    for (int n = 0; n < N; n++) {
        const float *x = inp + (size_t)n * C, *d = dout + (size_t)n * C;
        float mean, rstd, dnorm_mean = 0, dnorm_norm_mean = 0;
        mean_and_rstd(x, C, &mean, &rstd);
        for (int c = 0; c < C; c++) {
            dnorm_mean += d[c] * weight[c];
            dnorm_norm_mean += d[c] * weight[c] * (x[c] - mean) * rstd;
        }
        dnorm_mean /= C;
        dnorm_norm_mean /= C;
        for (int c = 0; c < C; c++) {
            float norm = (x[c] - mean) * rstd;
            dinp[(size_t)n * C + c] += rstd * (d[c] * weight[c] - dnorm_mean - norm * dnorm_norm_mean);
            dweight[c] += d[c] * norm;
            dbias[c] += d[c];
        }
    }
}

/* out = inp @ weight^T + bias. inp (N,C), weight (OC,C), bias (OC) or NULL, out (N,OC). */
static void linear_forward(float *out, const float *inp, const float *weight, const float *bias, int N, int C, int OC) {
    #pragma omp parallel for
    for (int n0 = 0; n0 < N; n0 += TILE) {
        /* In a tile that is not full the last position is computed several times. */
        const float *x[TILE];
        for (int i = 0; i < TILE; i++) x[i] = inp + (size_t)(n0 + i < N ? n0 + i : N - 1) * C;
        for (int o = 0; o < OC; o++) {
            const float *w = weight + (size_t)o * C;
            float sums[TILE] = {0};
            for (int c = 0; c < C; c++)
                for (int i = 0; i < TILE; i++) sums[i] += x[i][c] * w[c];
            for (int i = 0; i < TILE && n0 + i < N; i++)
                out[(size_t)(n0 + i) * OC + o] = sums[i] + (bias ? bias[o] : 0);
        }
    }
}

/* dinp += dout @ weight, dweight += dout^T @ inp, dbias += the sum of dout over positions. */
static void linear_backward(float *dinp, float *dweight, float *dbias, const float *dout, const float *inp,
                            const float *weight, int N, int C, int OC) {
    #pragma omp parallel for
    for (int n = 0; n < N; n++) {
        float *restrict dx = dinp + (size_t)n * C;
        for (int o = 0; o < OC; o++) {
            const float d = dout[(size_t)n * OC + o], *w = weight + (size_t)o * C;
            for (int c = 0; c < C; c++) dx[c] += d * w[c];
        }
    }
    #pragma omp parallel for
    for (int o = 0; o < OC; o++) {
        float *restrict dw = dweight + (size_t)o * C;
        for (int n = 0; n < N; n++) {
            const float d = dout[(size_t)n * OC + o], *x = inp + (size_t)n * C;
            for (int c = 0; c < C; c++) dw[c] += d * x[c];
            if (dbias) dbias[o] += d;
        }
    }
}

static void softmax(float *x, int size) {
    float highest = x[0], sum = 0;
    for (int i = 1; i < size; i++) highest = x[i] > highest ? x[i] : highest;
    for (int i = 0; i < size; i++) sum += x[i] = expf(x[i] - highest);
    for (int i = 0; i < size; i++) x[i] /= sum;
}

/* att[t,:] = softmax over t2 <= t of q[t] . k[t2] / sqrt(HS), out[t] = sum of att[t,t2] * v[t2].
   qkv (B,T,3C), att (B,NH,T,T), out (B,T,C). */
static void attention_forward(float *out, float *att, const float *qkv, int B, int T, int C, int NH) {
    const int HS = C / NH, C3 = 3 * C;
    const float scale = 1 / sqrtf(HS);
    #pragma omp parallel for collapse(3)
    for (int b = 0; b < B; b++) {
        for (int h = 0; h < NH; h++) {
            for (int t = 0; t < T; t++) {
                const float *rows = qkv + (size_t)b * T * C3 + h * HS, *q = rows + (size_t)t * C3;
                float *att_t = att + (((size_t)b * NH + h) * T + t) * T;
                float *restrict out_t = out + ((size_t)b * T + t) * C + h * HS;
                for (int t2 = 0; t2 <= t; t2++) {
                    const float *k = rows + (size_t)t2 * C3 + C;
                    float sum = 0;
                    for (int c = 0; c < HS; c++) sum += q[c] * k[c];
                    att_t[t2] = sum * scale;
                }
                softmax(att_t, t + 1);
                for (int c = 0; c < HS; c++) out_t[c] = 0;
                for (int t2 = 0; t2 <= t; t2++) {
                    const float *v = rows + (size_t)t2 * C3 + 2 * C;
                    for (int c = 0; c < HS; c++) out_t[c] += att_t[t2] * v[c];
                }
            }
        }
    }
}

/* datt (B,NH,T,T) is overwritten. */
static void attention_backward(float *dqkv, float *datt, const float *dout, const float *qkv, const float *att, int B,
                               int T, int C, int NH) {
    const int HS = C / NH, C3 = 3 * C;
    const float scale = 1 / sqrtf(HS);
    #pragma omp parallel for collapse(2)
    for (int b = 0; b < B; b++) {
        for (int h = 0; h < NH; h++) {
            const float *rows = qkv + (size_t)b * T * C3 + h * HS;
            float *drows = dqkv + (size_t)b * T * C3 + h * HS;
            for (int t = 0; t < T; t++) {
                const float *att_t = att + (((size_t)b * NH + h) * T + t) * T, *q = rows + (size_t)t * C3;
                const float *dout_t = dout + ((size_t)b * T + t) * C + h * HS;
                float *datt_t = datt + (((size_t)b * NH + h) * T + t) * T, *restrict dq = drows + (size_t)t * C3;
                float mean = 0;
                for (int t2 = 0; t2 <= t; t2++) {
                    const float *v = rows + (size_t)t2 * C3 + 2 * C;
                    float *restrict dv = drows + (size_t)t2 * C3 + 2 * C, sum = 0;
                    for (int c = 0; c < HS; c++) {
                        dv[c] += att_t[t2] * dout_t[c];
                        sum += dout_t[c] * v[c];
                    }
                    datt_t[t2] = sum;
                    mean += att_t[t2] * sum;
                }
                for (int t2 = 0; t2 <= t; t2++) {
                    const float dscore = scale * att_t[t2] * (datt_t[t2] - mean), *k = rows + (size_t)t2 * C3 + C;
                    float *restrict dk = drows + (size_t)t2 * C3 + C;
                    for (int c = 0; c < HS; c++) {
                        dq[c] += dscore * k[c];
                        dk[c] += dscore * q[c];
                    }
                }
            }
        }
    }
}

static const float GELU_SCALE = 0.7978845608028654f; /* sqrt(2/pi) */

static void gelu_forward(float *out, const float *inp, size_t size) {
    for (size_t i = 0; i < size; i++) {
        float x = inp[i];
        out[i] = 0.5f * x * (1 + tanhf(GELU_SCALE * (x + 0.044715f * x * x * x)));
    }
}

static void gelu_backward(float *dinp, const float *dout, const float *inp, size_t size) {
    for (size_t i = 0; i < size; i++) {
        float x = inp[i], tanh_u = tanhf(GELU_SCALE * (x + 0.044715f * x * x * x));
        float du = GELU_SCALE * (1 + 3 * 0.044715f * x * x);
        dinp[i] += dout[i] * (0.5f * (1 + tanh_u) + 0.5f * x * (1 - tanh_u * tanh_u) * du);
    }
}

static void residual_forward(float *out, const float *inp1, const float *inp2, size_t size) {
    for (size_t i = 0; i < size; i++) out[i] = inp1[i] + inp2[i];
}

static void residual_backward(float *dinp1, float *dinp2, const float *dout, size_t size) {
    for (size_t i = 0; i < size; i++) {
        dinp1[i] += dout[i];
        dinp2[i] += dout[i];
    }
}

/* ----- the model ----- */

typedef struct {
    int maxT, V, L, NH, C, Vp;
} Config;

/* The parameters of one block, or their gradients. */
typedef struct {
    float *ln1w, *ln1b, *qkvw, *qkvb, *attprojw, *attprojb, *ln2w, *ln2b, *fcw, *fcb, *fcprojw, *fcprojb;
} Block;

/* All parameters, or their gradients, in one array in the order of llm.c's files. */
typedef struct {
    float *all, *wte, *wpe, *lnfw, *lnfb;
    size_t size;
    Block *blocks;
} Parameters;

static size_t num_parameters(Config c) {
    size_t C = c.C;
    return (c.Vp + c.maxT) * C + c.L * (12 * C * C + 13 * C) + 2 * C;
}

/* Tensor l of L equal ones, which lie together at *next; moves *next past all of them. */
static float *take(float **next, size_t l, size_t L, size_t size) {
    float *tensor = *next + l * size;
    *next += L * size;
    return tensor;
}

static Parameters new_parameters(Config config) {
    Parameters p;
    const size_t C = config.C, L = config.L;
    p.size = num_parameters(config);
    p.all = zeros(p.size);
    p.blocks = malloc(L * sizeof(Block));
    float *next = p.all;
    p.wte = take(&next, 0, 1, config.Vp * C);
    p.wpe = take(&next, 0, 1, config.maxT * C);
    for (size_t l = 0; l < L; l++) {
        float *at = next;
        Block *b = &p.blocks[l];
        b->ln1w = take(&at, l, L, C);
        b->ln1b = take(&at, l, L, C);
        b->qkvw = take(&at, l, L, 3 * C * C);
        b->qkvb = take(&at, l, L, 3 * C);
        b->attprojw = take(&at, l, L, C * C);
        b->attprojb = take(&at, l, L, C);
        b->ln2w = take(&at, l, L, C);
        b->ln2b = take(&at, l, L, C);
        b->fcw = take(&at, l, L, 4 * C * C);
        b->fcb = take(&at, l, L, 4 * C);
        b->fcprojw = take(&at, l, L, 4 * C * C);
        b->fcprojb = take(&at, l, L, C);
    }
    p.lnfw = p.all + p.size - 2 * C;
    p.lnfb = p.lnfw + C;
    return p;
}

/* What one block computes, in order, or the gradients of it. */
typedef struct {
    float *ln1, *qkv, *att, *atty, *attproj, *residual2, *ln2, *fch, *fch_gelu, *fcproj, *residual3;
} BlockActivations;

typedef struct {
    float *all, *encoded, *lnf, *logits, *probs; /* probs: not among the gradients */
    size_t size;
    BlockActivations *blocks;
} Activations;

static Activations new_activations(Config config, int B, int T) {
    Activations a;
    const size_t N = (size_t)B * T, NC = N * config.C, NV = N * config.V, att = (size_t)B * config.NH * T * T;
    a.size = 2 * NC + 2 * NV + config.L * (18 * NC + att);
    a.all = zeros(a.size);
    a.blocks = malloc(config.L * sizeof(BlockActivations));
    float *next = a.all;
    a.encoded = take(&next, 0, 1, NC);
    for (int l = 0; l < config.L; l++) {
        BlockActivations *b = &a.blocks[l];
        b->ln1 = take(&next, 0, 1, NC);
        b->qkv = take(&next, 0, 1, 3 * NC);
        b->att = take(&next, 0, 1, att);
        b->atty = take(&next, 0, 1, NC);
        b->attproj = take(&next, 0, 1, NC);
        b->residual2 = take(&next, 0, 1, NC);
        b->ln2 = take(&next, 0, 1, NC);
        b->fch = take(&next, 0, 1, 4 * NC);
        b->fch_gelu = take(&next, 0, 1, 4 * NC);
        b->fcproj = take(&next, 0, 1, NC);
        b->residual3 = take(&next, 0, 1, NC);
    }
    a.lnf = take(&next, 0, 1, NC);
    a.logits = take(&next, 0, 1, NV);
    a.probs = take(&next, 0, 1, NV);
    return a;
}

typedef struct {
    Config config;
    Parameters params, grads;
    float *m, *v; /* running means of the gradient and of its square, for AdamW */
    Activations acts, grads_acts;
} GPT2;

static void forward(GPT2 *model, const int *tokens, int B, int T) {
    const Config config = model->config;
    const Parameters *p = &model->params;
    const Activations *acts = &model->acts;
    const int C = config.C, V = config.V, N = B * T;
    embedding_forward(acts->encoded, tokens, p->wte, p->wpe, B, T, C);
    const float *residual = acts->encoded;
    for (int l = 0; l < config.L; l++) {
        const Block *w = &p->blocks[l];
        const BlockActivations *a = &acts->blocks[l];
        layernorm_forward(a->ln1, residual, w->ln1w, w->ln1b, N, C);
        linear_forward(a->qkv, a->ln1, w->qkvw, w->qkvb, N, C, 3 * C);
        attention_forward(a->atty, a->att, a->qkv, B, T, C, config.NH);
        linear_forward(a->attproj, a->atty, w->attprojw, w->attprojb, N, C, C);
        residual_forward(a->residual2, residual, a->attproj, (size_t)N * C);
        layernorm_forward(a->ln2, a->residual2, w->ln2w, w->ln2b, N, C);
        linear_forward(a->fch, a->ln2, w->fcw, w->fcb, N, C, 4 * C);
        gelu_forward(a->fch_gelu, a->fch, (size_t)N * 4 * C);
        linear_forward(a->fcproj, a->fch_gelu, w->fcprojw, w->fcprojb, N, 4 * C, C);
        residual_forward(a->residual3, a->residual2, a->fcproj, (size_t)N * C);
        residual = a->residual3;
    }
    layernorm_forward(acts->lnf, residual, p->lnfw, p->lnfb, N, C);
    linear_forward(acts->logits, acts->lnf, p->wte, NULL, N, C, V);
    #pragma omp parallel for
    for (int n = 0; n < N; n++) {
        memcpy(acts->probs + (size_t)n * V, acts->logits + (size_t)n * V, V * sizeof(float));
        softmax(acts->probs + (size_t)n * V, V);
    }
}

/* The mean loss of the last forward pass. */
static double mean_loss(const GPT2 *model, const int *targets, int N) {
    double sum = 0;
    for (int n = 0; n < N; n++) sum -= logf(model->acts.probs[(size_t)n * model->config.V + targets[n]]);
    return sum / N;
}

static void backward(GPT2 *model, const int *tokens, const int *targets, int B, int T) {
    const Config config = model->config;
    const Parameters *p = &model->params, *dp = &model->grads;
    const Activations *acts = &model->acts, *dacts = &model->grads_acts;
    const int C = config.C, V = config.V, N = B * T;
    memset(dp->all, 0, dp->size * sizeof(float));
    memset(dacts->all, 0, dacts->size * sizeof(float));
    for (int n = 0; n < N; n++)
        for (int v = 0; v < V; v++)
            dacts->logits[(size_t)n * V + v] += (acts->probs[(size_t)n * V + v] - (v == targets[n])) / N;
    linear_backward(dacts->lnf, dp->wte, NULL, dacts->logits, acts->lnf, p->wte, N, C, V);
    const float *residual = acts->blocks[config.L - 1].residual3;
    float *dresidual = dacts->blocks[config.L - 1].residual3;
    layernorm_backward(dresidual, dp->lnfw, dp->lnfb, dacts->lnf, residual, p->lnfw, N, C);
    for (int l = config.L - 1; l >= 0; l--) {
        const Block *w = &p->blocks[l], *dw = &dp->blocks[l];
        const BlockActivations *a = &acts->blocks[l], *da = &dacts->blocks[l];
        residual = l ? acts->blocks[l - 1].residual3 : acts->encoded;
        dresidual = l ? dacts->blocks[l - 1].residual3 : dacts->encoded;
        residual_backward(da->residual2, da->fcproj, da->residual3, (size_t)N * C);
        linear_backward(da->fch_gelu, dw->fcprojw, dw->fcprojb, da->fcproj, a->fch_gelu, w->fcprojw, N, 4 * C, C);
        gelu_backward(da->fch, da->fch_gelu, a->fch, (size_t)N * 4 * C);
        linear_backward(da->ln2, dw->fcw, dw->fcb, da->fch, a->ln2, w->fcw, N, C, 4 * C);
        layernorm_backward(da->residual2, dw->ln2w, dw->ln2b, da->ln2, a->residual2, w->ln2w, N, C);
        residual_backward(dresidual, da->attproj, da->residual2, (size_t)N * C);
        linear_backward(da->atty, dw->attprojw, dw->attprojb, da->attproj, a->atty, w->attprojw, N, C, C);
        attention_backward(da->qkv, da->att, da->atty, a->qkv, a->att, B, T, C, config.NH);
        linear_backward(da->ln1, dw->qkvw, dw->qkvb, da->qkv, a->ln1, w->qkvw, N, C, 3 * C);
        layernorm_backward(dresidual, dw->ln1w, dw->ln1b, da->ln1, residual, w->ln1w, N, C);
    }
    embedding_backward(dp->wte, dp->wpe, dacts->encoded, tokens, B, T, C);
}

/* One step of AdamW, `step` counting from 1. */
static void update(GPT2 *model, int step, float learning_rate, float weight_decay) {
    const float beta1 = 0.9f, beta2 = 0.999f, eps = 1e-8f;
    const float m_correction = 1 / (1 - powf(beta1, step)), v_correction = 1 / (1 - powf(beta2, step));
    float *params = model->params.all, *m = model->m, *v = model->v;
    const float *grads = model->grads.all;
    for (size_t i = 0; i < model->params.size; i++) {
        m[i] = beta1 * m[i] + (1 - beta1) * grads[i];
        v[i] = beta2 * v[i] + (1 - beta2) * grads[i] * grads[i];
        float direction = m[i] * m_correction / (sqrtf(v[i] * v_correction) + eps) + weight_decay * params[i];
        params[i] -= learning_rate * direction;
    }
}

/* ----- files ----- */

/* Opens an llm.c file and reads the 256 int32 that it begins with. */
static FILE *open_file(const char *what, const char *path, int32_t magic, int32_t version, int32_t header[256]) {
    FILE *file = fopen(path, "rb");
    if (!file) fail(what, path, strerror(errno));
    if (fread(header, sizeof(int32_t), 256, file) != 256 || header[0] != magic || header[1] != version)
        fail(what, path, "another kind of file");
    return file;
}

static GPT2 load(const char *path, int B, int T) {
    int32_t h[256];
    FILE *file = open_file("checkpoint", path, 20240326, 3, h);
    GPT2 model;
    model.config = (Config){h[2], h[3], h[4], h[5], h[6], h[7]};
    if (B < 1 || T < 1 || T > model.config.maxT) fail("checkpoint", path, "takes no such -b and -t");
    model.params = new_parameters(model.config);
    model.grads = new_parameters(model.config);
    model.m = zeros(model.params.size);
    model.v = zeros(model.params.size);
    model.acts = new_activations(model.config, B, T);
    model.grads_acts = new_activations(model.config, B, T);
    if (fread(model.params.all, sizeof(float), model.params.size, file) != model.params.size)
        fail("checkpoint", path, "shorter than its header says");
    fclose(file);
    return model;
}

/* The random numbers of mt19937 (Matsumoto and Nishimura, 1998). */
typedef struct {
    uint32_t state[624];
    int position;
} MersenneTwister;

static void seed(MersenneTwister *random, uint32_t seed) {
    random->state[0] = seed;
    for (int i = 1; i < 624; i++)
        random->state[i] = 1812433253u * (random->state[i - 1] ^ random->state[i - 1] >> 30) + i;
    random->position = 624;
}

static uint32_t next_random(MersenneTwister *random) {
    uint32_t *state = random->state;
    if (random->position == 624) {
        for (int i = 0; i < 624; i++) {
            uint32_t joined = (state[i] & 0x80000000u) | (state[(i + 1) % 624] & 0x7fffffffu);
            state[i] = state[(i + 397) % 624] ^ joined >> 1 ^ (joined & 1 ? 0x9908b0dfu : 0);
        }
        random->position = 0;
    }
    uint32_t y = state[random->position++];
    y ^= y >> 11;
    y ^= y << 7 & 0x9d2c5680u;
    y ^= y << 15 & 0xefc60000u;
    return y ^ y >> 18;
}

static void shuffle(MersenneTwister *random, int *items, int count) {
    for (int i = count - 1; i > 0; i--) {
        int j = next_random(random) % (i + 1), item = items[i];
        items[i] = items[j];
        items[j] = item;
    }
}

/* Batches of N tokens and their targets from the shards that match a pattern, in llm.c's random order or in file order. */
typedef struct {
    int N, V, shuffled, num_shards, shard, sample, num_samples;
    char **paths;
    int *shard_order, *sample_order, *sizes;
    int *tokens, *targets;
    uint16_t *buffer;
    MersenneTwister random;
} Loader;

static void begin_shard(Loader *loader, int shard) {
    loader->shard = shard;
    loader->sample = 0;
    loader->num_samples = (loader->sizes[loader->shard_order[shard]] - 1) / loader->N;
    for (int i = 0; i < loader->num_samples; i++) loader->sample_order[i] = i;
    if (loader->shuffled) shuffle(&loader->random, loader->sample_order, loader->num_samples);
}

/* Begins an epoch. */
static void reset(Loader *loader) {
    if (loader->shuffled) shuffle(&loader->random, loader->shard_order, loader->num_shards);
    begin_shard(loader, 0);
}

static Loader new_loader(const char *pattern, int N, int V, int shuffled) {
    Loader loader = {.N = N, .V = V, .shuffled = shuffled};
    glob_t found;
    if (glob(pattern, 0, NULL, &found)) fail("data", pattern, "no such file");
    int most = 0;
    loader.num_shards = found.gl_pathc;
    loader.paths = found.gl_pathv;
    loader.sizes = malloc(loader.num_shards * sizeof(int));
    loader.shard_order = malloc(loader.num_shards * sizeof(int));
    for (int i = 0; i < loader.num_shards; i++) {
        int32_t header[256];
        fclose(open_file("data", loader.paths[i], 20240520, 1, header));
        if (header[2] < N + 1) fail("data", loader.paths[i], "shorter than a batch; use a smaller -b or -t");
        loader.sizes[i] = header[2];
        loader.shard_order[i] = i;
        most = header[2] > most ? header[2] : most;
    }
    loader.sample_order = malloc(most / N * sizeof(int));
    loader.tokens = malloc(N * sizeof(int));
    loader.targets = malloc(N * sizeof(int));
    loader.buffer = malloc((N + 1) * sizeof(uint16_t));
    seed(&loader.random, 42);
    reset(&loader);
    return loader;
}

static void next_batch(Loader *loader) {
    if (loader->sample == loader->num_samples) {
        if (loader->shard + 1 == loader->num_shards) reset(loader);
        else begin_shard(loader, loader->shard + 1);
    }
    const char *path = loader->paths[loader->shard_order[loader->shard]];
    const int N = loader->N;
    FILE *file = fopen(path, "rb");
    if (!file) fail("data", path, strerror(errno));
    fseek(file, 1024 + 2L * loader->sample_order[loader->sample++] * N, SEEK_SET);
    if (fread(loader->buffer, sizeof(uint16_t), N + 1, file) != (size_t)N + 1)
        fail("data", path, "shorter than its header says");
    fclose(file);
    for (int i = 0; i <= N; i++)
        if (loader->buffer[i] >= loader->V) fail("data", path, "has a token that is not in the model's vocabulary");
    for (int i = 0; i < N; i++) {
        loader->tokens[i] = loader->buffer[i];
        loader->targets[i] = loader->buffer[i + 1];
    }
}

/* ----- the program ----- */

typedef struct {
    const char *flag, *name, *value;
} Option;

static Option options[] = {{"-e", "--init", "gpt2_124M.bin"},
                           {"-i", "--train-data", "data/tinyshakespeare/tiny_shakespeare_train.bin"},
                           {"-j", "--val-data", "data/tinyshakespeare/tiny_shakespeare_val.bin"},
                           {"-b", "--batch-size", "4"},
                           {"-t", "--seq-len", "64"},
                           {"-l", "--learning-rate", "1e-4"},
                           {"-c", "--weight-decay", "0.0"},
                           {"-x", "--max-steps", "40"},
                           {"-v", "--val-every", "10"},
                           {"-m", "--val-batches", "5"}};
enum { NUM_OPTIONS = sizeof(options) / sizeof(options[0]) };

static void parse_options(int argc, char **argv) {
    for (int i = 1; i < argc; i += 2) {
        Option *option = NULL;
        for (int j = 0; j < NUM_OPTIONS; j++)
            if (!strcmp(argv[i], options[j].flag) || !strcmp(argv[i], options[j].name)) option = &options[j];
        if (!option || i + 1 == argc) {
            fprintf(stderr, "option %s: %s; the options and their defaults are:\n", argv[i],
                    option ? "a value is missing" : "unknown");
            for (int j = 0; j < NUM_OPTIONS; j++)
                fprintf(stderr, "  %s %s %s\n", options[j].flag, options[j].name, options[j].value);
            exit(2);
        }
        option->value = argv[i + 1];
    }
}

static const char *option(const char *name) {
    for (int i = 0; i < NUM_OPTIONS; i++)
        if (!strcmp(options[i].name, name)) return options[i].value;
    abort();
}

static double milliseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1e3 + now.tv_nsec / 1e6;
}

int main(int argc, char **argv) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    parse_options(argc, argv);
    const int B = atoi(option("--batch-size")), T = atoi(option("--seq-len")), N = B * T;
    const int steps = atoi(option("--max-steps")), val_every = atoi(option("--val-every"));
    const int val_batches = atoi(option("--val-batches"));
    GPT2 model = load(option("--init"), B, T);
    Loader train = new_loader(option("--train-data"), N, model.config.V, 1);
    Loader val = new_loader(option("--val-data"), N, model.config.V, 0);
    for (int step = 0; step <= steps; step++) {
        if (val_every > 0 && step % val_every == 0) {
            double loss = 0;
            reset(&val);
            for (int i = 0; i < val_batches; i++) {
                next_batch(&val);
                forward(&model, val.tokens, B, T);
                loss += mean_loss(&model, val.targets, N) / val_batches;
            }
            printf("val loss %.6f\n", loss);
        }
        if (step == steps) break;
        double start = milliseconds();
        next_batch(&train);
        forward(&model, train.tokens, B, T);
        double loss = mean_loss(&model, train.targets, N);
        backward(&model, train.tokens, train.targets, B, T);
        update(&model, step + 1, atof(option("--learning-rate")), atof(option("--weight-decay")));
        printf("step %d: train loss %.6f (took %.1f ms)\n", step + 1, loss, milliseconds() - start);
    }
    return 0;
}
